"""HTTP: the Open Inference Protocol, plain POST of an image, metrics and the page; everything here runs in the server."""
