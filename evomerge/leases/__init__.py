"""The one writer of a study: leases, locks of files, and who holds them."""
