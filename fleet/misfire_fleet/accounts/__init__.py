"""Keeps who may use the console: accounts with roles, sessions of browsers, tokens of programs, links.

    name, password --Passwords--> Account --Sessions--> cookie      program --Tokens--> Account, role, areas

Secrets (cookies, tokens, one-time links) are random, shown once, and kept as a SHA-256; passwords as argon2.
Every change is a line of the audit log, in the same transaction.
"""
