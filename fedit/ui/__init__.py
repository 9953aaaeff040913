"""Chat and blind comparison in the browser: one page on the loopback address, without any foreign service."""
