"""Lets requests in: `Guard` checks where they come from, `Access` finds who asks, `oidc` asks a provider."""
