"""Takes labels out of the store as files of other tools, and brings files back as label records.

store --items--> Format.write in a temporary folder --manifest, rename--> DIR, FILE or archive
DIR, FILE or archive --unpacked within limits--> Format.read --checked--> LabelLedger.add
"""
