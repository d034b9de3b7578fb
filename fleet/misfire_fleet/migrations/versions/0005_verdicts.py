"""Adds verdicts, and the indexes that queues of the verdict screen are read by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds two tables and two indexes of `samples`, which take seconds for a million rows."""
    op.create_table(
        "verdicts",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("act", sa.String(64), nullable=False),
        sa.Column("sample", sa.String(64), nullable=False),
        sa.Column("annotator", sa.String(200), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("holds", sa.String(64), nullable=False),
        sa.Column("undoes", sa.String(64), nullable=False),
        sa.Column("label_version", sa.Integer),
        sa.Column("withdraws", sa.Integer),
        sa.Column("shared", sa.Boolean, nullable=False),
        sa.Column("blind", sa.Boolean, nullable=False),
        sa.Column("took_s", sa.Float),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("recorded_at", sa.Float, nullable=False),
    )
    op.create_index("uq_verdicts", "verdicts", ["act", "sample"], unique=True)
    op.create_index("ix_verdicts_sample", "verdicts", ["sample", "annotator", "recorded_at"])
    op.create_index("ix_verdicts_annotator", "verdicts", ["annotator", "recorded_at"])
    op.create_index("ix_verdicts_recorded_at", "verdicts", ["recorded_at"])
    op.create_index("ix_verdicts_undoes", "verdicts", ["undoes"])
    op.create_table("stale_verdicts", sa.Column("name", sa.String(64), primary_key=True))
    op.create_index("ix_samples_random_id", "samples", ["random", "id"])
    op.create_index("ix_samples_percentile_id", "samples", ["percentile", "id"])


def downgrade() -> None:
    """Drops what was added."""
    op.drop_index("ix_samples_percentile_id", table_name="samples")
    op.drop_index("ix_samples_random_id", table_name="samples")
    op.drop_table("stale_verdicts")
    op.drop_table("verdicts")
