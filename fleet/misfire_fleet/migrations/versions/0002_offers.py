"""Adds the document of each row's offer, the documents that must be rewritten, and copies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a column, empty in old rows, and two tables. No row is rewritten, so a large database is fast."""
    op.add_column("samples", sa.Column("offers", sa.String(64), nullable=True))
    op.create_index("ix_samples_offers", "samples", ["offers"])
    op.create_table("stale_offers", sa.Column("name", sa.String(64), primary_key=True))
    op.create_table(
        "copies",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("vehicle", sa.String(64), primary_key=True),
    )
    op.create_index("ix_copies_vehicle", "copies", ["vehicle"])


def downgrade() -> None:
    """Drops the column and the tables."""
    op.drop_table("copies")
    op.drop_table("stale_offers")
    op.drop_index("ix_samples_offers", "samples")
    op.drop_column("samples", "offers")
