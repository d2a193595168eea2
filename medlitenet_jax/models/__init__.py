"""The network and the operations it is made of."""
