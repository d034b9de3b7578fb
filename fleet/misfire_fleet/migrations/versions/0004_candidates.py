"""Adds what the gate said of candidates, and the published bundles."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds tables only, so a large database is fast."""
    op.create_table(
        "gate_verdicts",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("candidate", sa.String(130), nullable=False),
        sa.Column("candidate_sha256", sa.String(64), nullable=False),
        sa.Column("incumbent", sa.String(130), nullable=False),
        sa.Column("incumbent_sha256", sa.String(64), nullable=False),
        sa.Column("snapshot", sa.String(64), nullable=False),
        sa.Column("snapshot_sha256", sa.String(64), nullable=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
    )
    op.create_index("ix_gate_verdicts_candidate", "gate_verdicts", ["candidate"])
    op.create_index("ix_gate_verdicts_candidate_sha256", "gate_verdicts", ["candidate_sha256"])
    op.create_table(
        "published_bundles",
        sa.Column("bundle", sa.String(130), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("forced", sa.Boolean, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("ix_published_bundles_sha256", "published_bundles", ["sha256"])


def downgrade() -> None:
    """Drops the tables."""
    op.drop_table("published_bundles")
    op.drop_table("gate_verdicts")
