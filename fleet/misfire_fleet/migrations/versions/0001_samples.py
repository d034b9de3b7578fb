"""Creates the first schema: samples, vehicles, telemetry, refusals, and the records of deletion."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Creates all tables."""
    op.create_table(
        "samples",
        sa.Column("seq", _BIG, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("vehicle", sa.String(64), nullable=False),
        sa.Column("captured_at", sa.Float, nullable=False),
        sa.Column("stored_at", sa.Float, nullable=False),
        sa.Column("bundle", sa.String(130), nullable=False),
        sa.Column("trigger", sa.String(64), nullable=False),
        sa.Column("random", sa.Boolean, nullable=False),
        sa.Column("percentile", sa.Float),
        sa.Column("media_type", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("collector", sa.String(64), nullable=False),
        sa.Column("embedding", sa.LargeBinary),
        sa.Column("offer", sa.Text, nullable=False),
    )
    op.create_index("ix_samples_vehicle_seq", "samples", ["vehicle", "seq"])
    op.create_index("ix_samples_captured_at", "samples", ["captured_at"])
    op.create_index("ix_samples_stored_at", "samples", ["stored_at"])
    op.create_table(
        "vehicles",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("first_seen", sa.Float, nullable=False),
        sa.Column("online", sa.Boolean, nullable=False),
        sa.Column("state", sa.Text),
        sa.Column("state_at", sa.Float),
        sa.Column("telemetry", sa.Text),
        sa.Column("telemetry_at", sa.Float),
    )
    op.create_table(
        "telemetry",
        sa.Column("seq", _BIG, primary_key=True, autoincrement=True),
        sa.Column("vehicle", sa.String(64), nullable=False),
        sa.Column("received_at", sa.Float, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
    )
    op.create_index("ix_telemetry_vehicle_received_at", "telemetry", ["vehicle", "received_at"])
    op.create_table(
        "refusals",
        sa.Column("vehicle", sa.String(64), primary_key=True),
        sa.Column("verdict", sa.String(16), primary_key=True),
        sa.Column("cause", sa.String(32), primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.Float, nullable=False),
    )
    op.create_table(
        "tombstones",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("vehicle", sa.String(64), nullable=False),
        sa.Column("deleted_at", sa.Float, nullable=False),
        sa.Column("reason", sa.String(256), nullable=False),
    )
    op.create_table(
        "doomed_blobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("doomed_at", sa.Float, nullable=False),
    )
    op.create_table(
        "holds",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("sample", sa.String(64)),
        sa.Column("vehicle", sa.String(64)),
        sa.Column("captured_from", sa.Float),
        sa.Column("captured_to", sa.Float),
        sa.Column("reason", sa.String(256), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("released_at", sa.Float),
    )
    op.create_table(
        "audit",
        sa.Column("seq", _BIG, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Drops all tables."""
    for table in (
        "audit",
        "holds",
        "doomed_blobs",
        "tombstones",
        "refusals",
        "telemetry",
        "vehicles",
        "samples",
    ):
        op.drop_table(table)
