"""Adds the scores of all frames by hour, so that charts need not read every heartbeat, and an index."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds two tables, and an index by which uploads are counted per vehicle without reading the rows."""
    op.create_table(
        "score_hours",
        sa.Column("source", sa.String(8), primary_key=True),
        sa.Column("by", sa.String(128), primary_key=True),
        sa.Column("slice", sa.String(128), primary_key=True),
        sa.Column("bundle", sa.String(130), primary_key=True),
        sa.Column("score", sa.String(128), primary_key=True),
        sa.Column("begins", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("frames", sa.Float, nullable=False),
        sa.Column("bins", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "rolled_up",
        sa.Column("source", sa.String(8), primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_samples_vehicle_stored_at", "samples", ["vehicle", "stored_at", "size"])


def downgrade() -> None:
    """Drops what was added."""
    op.drop_index("ix_samples_vehicle_stored_at", table_name="samples")
    op.drop_table("rolled_up")
    op.drop_table("score_hours")
