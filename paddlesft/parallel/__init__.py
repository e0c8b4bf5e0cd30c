"""Training on several ranks: the layout of the degrees, and the CPU backend that rehearses it."""
