"""The same job over many machines: Flower carries it, the round loop and the client are fedit's own."""
