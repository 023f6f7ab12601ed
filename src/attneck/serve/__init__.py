"""The page: where attention looks, in a browser, live from a server on loopback or as one file to send."""
