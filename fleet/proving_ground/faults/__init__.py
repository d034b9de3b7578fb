"""Runs a fleet of real processes and breaks them: kills, cut links, full disks, frozen databases."""
