"""Adds labels with their classes, snapshots with their samples, frozen groups, and lineage."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds tables only, so a large database is fast."""
    op.create_table(
        "labels",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("sample", sa.String(64), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("annotator", sa.String(200), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("recorded_at", sa.Float, nullable=False),
        sa.Column("document", sa.String(64), nullable=False),
    )
    op.create_index("uq_labels", "labels", ["sample", "source", "annotator", "version"], unique=True)
    op.create_index("ix_labels_recorded_at", "labels", ["recorded_at"])
    op.create_index("ix_labels_document", "labels", ["document"])
    op.create_table(
        "label_names",
        sa.Column("label", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(200), primary_key=True),
    )
    op.create_index("ix_label_names_name", "label_names", ["name"])
    op.create_table(
        "classes",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("added_by", sa.String(64), nullable=False),
        sa.Column("added_at", sa.Float, nullable=False),
    )
    op.create_table(
        "stale_labels",
        sa.Column("name", sa.String(64), primary_key=True),
    )
    op.create_table(
        "snapshots",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("frozen", sa.Boolean, nullable=False),
        sa.Column("header", sa.Text, nullable=False),
    )
    op.create_index("ix_snapshots_sha256", "snapshots", ["sha256"])
    op.create_table(
        "snapshot_samples",
        sa.Column("snapshot", sa.String(64), primary_key=True),
        sa.Column("sample", sa.String(64), primary_key=True),
        sa.Column("side", sa.String(16), nullable=False),
        sa.Column("label", sa.String(64), nullable=False),
    )
    op.create_index("ix_snapshot_samples_sample", "snapshot_samples", ["sample"])
    op.create_table(
        "frozen_groups",
        sa.Column("group", sa.String(300), primary_key=True),
        sa.Column("snapshot", sa.String(64), primary_key=True),
    )
    op.create_table(
        "lineage",
        sa.Column("child_kind", sa.String(16), primary_key=True),
        sa.Column("child", sa.String(130), primary_key=True),
        sa.Column("parent_kind", sa.String(16), primary_key=True),
        sa.Column("parent", sa.String(130), primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("ix_lineage_parent", "lineage", ["parent_kind", "parent"])


def downgrade() -> None:
    """Drops the tables."""
    for table in (
        "lineage",
        "frozen_groups",
        "snapshot_samples",
        "snapshots",
        "stale_labels",
        "classes",
        "label_names",
        "labels",
    ):
        op.drop_table(table)
