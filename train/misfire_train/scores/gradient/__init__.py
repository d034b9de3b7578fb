"""Defines scores that measure the gradient of the last layer, in closed form."""
