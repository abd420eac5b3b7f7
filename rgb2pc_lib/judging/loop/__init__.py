"""Does a robot act as well on it: one small policy on every representation, judged by its actions and by roll-outs."""
