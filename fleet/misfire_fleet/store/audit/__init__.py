"""Keeps the audit log: who changed what, when, and what it was before and after.

The log is append-only: triggers of the database (SQLite and PostgreSQL) refuse to change or delete its rows.
"""
