"""Writes and reads label files of other tools, one format a file.

store --ExportItem--> Format.write --> a tool's files --people--> Format.read --ImportedLabel--> records

`base.py` defines what every format does and what passes through it; `registry.py` finds a format by its name
or by the look of a path.
"""
