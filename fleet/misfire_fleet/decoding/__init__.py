"""Decodes what vehicles sent, in processes with limits of memory and time."""
