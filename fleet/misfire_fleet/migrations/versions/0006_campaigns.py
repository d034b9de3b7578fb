"""Adds campaigns, the tags of vehicles, the fleet's budget, and each vehicle's desired configuration."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds five tables, and the index that a campaign's samples are counted by (seconds per million rows)."""
    op.create_table(
        "campaigns",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(256), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("changed_at", sa.Float, nullable=False),
        sa.Column("changed_by", sa.String(64), nullable=False),
        sa.Column("started_at", sa.Float),
        sa.Column("ended_at", sa.Float),
        sa.Column("dry_run", sa.Text),
    )
    op.create_index("ix_campaigns_state", "campaigns", ["state"])
    op.create_table(
        "vehicle_tags",
        sa.Column("vehicle", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("value", sa.String(64), nullable=False),
    )
    op.create_table(
        "fleet_budget",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("bytes_per_day", sa.BigInteger),
        sa.Column("control", sa.Text, nullable=False),
        sa.Column("changed_at", sa.Float, nullable=False),
        sa.Column("changed_by", sa.String(64), nullable=False),
    )
    op.create_table(
        "desired_documents",
        sa.Column("vehicle", sa.String(64), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("campaigns", sa.Text, nullable=False),
        sa.Column("left_out", sa.Text, nullable=False),
        sa.Column("published_at", sa.Float),
        sa.Column("reported_version", sa.BigInteger),
        sa.Column("reported_at", sa.Float),
        sa.Column("accepted", sa.Boolean),
        sa.Column("bundle", sa.String(130), nullable=False),
        sa.Column("reason", sa.String(512), nullable=False),
    )
    op.create_table(
        "campaign_refusals",
        sa.Column("vehicle", sa.String(64), primary_key=True),
        sa.Column("campaign", sa.String(40), primary_key=True),
        sa.Column("bundle", sa.String(130), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("reason", sa.String(512), nullable=False),
    )
    op.create_index("ix_samples_trigger_size", "samples", ["trigger", "stored_at", "vehicle", "size"])


def downgrade() -> None:
    """Drops what was added."""
    op.drop_index("ix_samples_trigger_size", table_name="samples")
    for table in ("campaign_refusals", "desired_documents", "fleet_budget", "vehicle_tags"):
        op.drop_table(table)
    op.drop_index("ix_campaigns_state", table_name="campaigns")
    op.drop_table("campaigns")
