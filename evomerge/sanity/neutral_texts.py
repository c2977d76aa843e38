"""Texts of the sanity probe, written for it: plain English on nothing in particular, of no benchmark.

No search item can be among them, and nobody learns anything private from them. Another text is another probe: raise
`figures.VERSION` with it.
"""

from __future__ import annotations

from typing import Final

TEXT: Final = (
    "The market opens early on Saturdays. Farmers from the valley bring apples, cheese and bread, and a man with "
    "a grey cap sells honey from the back of his van. By nine o'clock the square is full of people who talk about "
    "the weather and the price of fuel. Children run between the stalls, and a dog waits in front of the "
    "butcher's door. At noon the bells ring, and the first sellers begin to pack their boxes. What is left they "
    "give away, or take home for the evening. In winter there are fewer stalls, but the baker comes in any "
    "weather. She says that she has missed only two Saturdays in thirty years, once because of a flood and once "
    "because of her daughter's wedding. The town has talked for a long time about a roof over the square. Nothing "
    "has come of it yet, since nobody wants to pay for it, and most people like to see the sky while they buy "
    "their vegetables."
)

OPENINGS: Final = (
    "The old bridge was closed last year because",
    "On the first day of the holiday we",
    "To make a simple soup, you need",
    "The most important thing about a good map is",
    "When the train finally arrived, the passengers",
    "My grandmother always told us that",
    "Many birds fly south in autumn, and",
    "The meeting began with a short report on",
)

QUESTIONS: Final = (
    "What colour is the sky on a clear day? Answer in one word.",
    "How many legs does a spider have? Answer with the number.",
    "Name one fruit that is yellow. Answer in one word.",
    "What is the opposite of hot? Answer in one word.",
    "Which day comes after Monday? Answer in one word.",
    "What do bees make? Answer in one word.",
    "Is ice warmer or colder than steam? Answer in one word.",
    "How many months does a year have? Answer with the number.",
)
