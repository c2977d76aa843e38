"""`evomerge report`: a study as one HTML page that needs nothing else, and as pictures.

Holds: the content of the page, its template, figures in SVG and PNG. The one room that imports matplotlib.
Does not hold: numbers of its own; they are those of leaderboard, verdict and charts.
Start reading at: `study_page.py`, then `page_content.py`.
"""
