"""One run from a request to a result: its stages, what is known so far, and where its time goes."""
