"""Draws fleets whose every frame is known, to try estimates and budgets on."""
