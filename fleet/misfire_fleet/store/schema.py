"""Defines the tables of the fleet's database for SQLAlchemy; `migrations/` creates them.

`samples` has one row per stored sample. Its key is the SHA-256 that also names the blob; `offers` is the name
of the document next to the blobs that has its offer. The other tables hold vehicles, telemetry, refused
offers, copies (vehicles that got `stored` for another vehicle's sample), the records of deletion
(tombstones, holds, blobs, offers and labels to be removed, audit), labels with the fleet's classes,
verdicts of people, pins, selections and saved views, snapshots, which run and bundle came of which snapshot
(lineage), what the gate said of candidates, which bundles are published, campaigns, what vehicles are
desired to run, who may use the console, and the distribution of scores by hour. Times are seconds since
1970, by the clock of the machine that wrote them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

# SQLite numbers rows automatically only if the key is exactly INTEGER.
_BIG = BigInteger().with_variant(Integer(), "sqlite")

samples = Table(
    "samples",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("vehicle", String(64), nullable=False),
    Column("captured_at", Float, nullable=False),
    Column("stored_at", Float, nullable=False),
    Column("bundle", String(130), nullable=False),
    Column("trigger", String(64), nullable=False),
    Column("random", Boolean, nullable=False),
    Column("percentile", Float),
    Column("media_type", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("collector", String(64), nullable=False),
    Column("embedding", LargeBinary),
    Column("offer", Text, nullable=False),
    Column("offers", String(64)),
    Index("ix_samples_offers", "offers"),
    Index("ix_samples_vehicle_seq", "vehicle", "seq"),
    Index("ix_samples_captured_at", "captured_at"),
    Index("ix_samples_stored_at", "stored_at"),
    Index("ix_samples_random_id", "random", "id"),
    Index("ix_samples_percentile_id", "percentile", "id"),
    Index("ix_samples_trigger_size", "trigger", "stored_at", "vehicle", "size"),
    Index("ix_samples_vehicle_stored_at", "vehicle", "stored_at", "size"),
)

vehicles = Table(
    "vehicles",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("first_seen", Float, nullable=False),
    Column("online", Boolean, nullable=False),
    Column("state", Text),
    Column("state_at", Float),
    Column("telemetry", Text),
    Column("telemetry_at", Float),
)

telemetry = Table(
    "telemetry",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("vehicle", String(64), nullable=False),
    Column("received_at", Float, nullable=False),
    Column("payload", Text, nullable=False),
    Index("ix_telemetry_vehicle_received_at", "vehicle", "received_at"),
)

refusals = Table(
    "refusals",
    metadata,
    Column("vehicle", String(64), primary_key=True),
    Column("verdict", String(16), primary_key=True),
    Column("cause", String(32), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("last_at", Float, nullable=False),
)

tombstones = Table(
    "tombstones",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("vehicle", String(64), nullable=False),
    Column("deleted_at", Float, nullable=False),
    Column("reason", String(256), nullable=False),
)

doomed_blobs = Table(
    "doomed_blobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("doomed_at", Float, nullable=False),
)

stale_offers = Table(
    "stale_offers",
    metadata,
    Column("name", String(64), primary_key=True),
)

copies = Table(
    "copies",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("vehicle", String(64), primary_key=True),
    Index("ix_copies_vehicle", "vehicle"),
)

holds = Table(
    "holds",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("sample", String(64)),
    Column("vehicle", String(64)),
    Column("captured_from", Float),
    Column("captured_to", Float),
    Column("reason", String(256), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("released_at", Float),
)

# Append-only: triggers of the migration refuse to change or delete a row. `before` and `after`: JSON.
audit = Table(
    "audit",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("action", String(32), nullable=False),
    Column("detail", Text, nullable=False),
    Column("subject", String(200), nullable=False, server_default=""),
    Column("via", String(64), nullable=False, server_default=""),
    Column("before", Text),
    Column("after", Text),
    Index("ix_audit_actor", "actor", "seq"),
    Index("ix_audit_action", "action", "seq"),
    Index("ix_audit_subject", "subject", "seq"),
)

# Rows are added, and go only with their sample. `recorded_at` rises from one transaction to the next, so all
# labels up to a time are the same whenever they are asked for. `at` is when the annotator made the label.
labels = Table(
    "labels",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("sample", String(64), nullable=False),
    Column("source", String(64), nullable=False),
    Column("annotator", String(200), nullable=False),
    Column("version", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("content", Text, nullable=False),
    Column("content_hash", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("recorded_at", Float, nullable=False),
    Column("document", String(64), nullable=False),
    Index("uq_labels", "sample", "source", "annotator", "version", unique=True),
    Index("ix_labels_recorded_at", "recorded_at"),
    Index("ix_labels_document", "document"),
)

label_names = Table(
    "label_names",
    metadata,
    Column("label", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(200), primary_key=True),
    Index("ix_label_names_name", "name"),
)

classes = Table(
    "classes",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("added_by", String(64), nullable=False),
    Column("added_at", Float, nullable=False),
)

stale_labels = Table(
    "stale_labels",
    metadata,
    Column("name", String(64), primary_key=True),
)

# Rows are added, and go only with their sample. `recorded_at` is another for each act, and rises. The newest
# row of a sample and an annotator holds, also if it takes a verdict back (`verdict` is "none" then).
verdicts = Table(
    "verdicts",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("act", String(64), nullable=False),
    Column("sample", String(64), nullable=False),
    Column("annotator", String(200), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("holds", String(64), nullable=False),
    Column("undoes", String(64), nullable=False),
    Column("label_version", Integer),
    Column("withdraws", Integer),
    Column("shared", Boolean, nullable=False),
    Column("blind", Boolean, nullable=False),
    Column("took_s", Float),
    Column("at", Float, nullable=False),
    Column("recorded_at", Float, nullable=False),
    Index("uq_verdicts", "act", "sample", unique=True),
    Index("ix_verdicts_sample", "sample", "annotator", "recorded_at"),
    Index("ix_verdicts_annotator", "annotator", "recorded_at"),
    Index("ix_verdicts_recorded_at", "recorded_at"),
    Index("ix_verdicts_undoes", "undoes"),
)

stale_verdicts = Table(
    "stale_verdicts",
    metadata,
    Column("name", String(64), primary_key=True),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("count", Integer, nullable=False),
    Column("frozen", Boolean, nullable=False),
    Column("header", Text, nullable=False),
    Index("ix_snapshots_sha256", "sha256"),
)

snapshot_samples = Table(
    "snapshot_samples",
    metadata,
    Column("snapshot", String(64), primary_key=True),
    Column("sample", String(64), primary_key=True),
    Column("side", String(16), nullable=False),
    Column("label", String(64), nullable=False),
    Index("ix_snapshot_samples_sample", "sample"),
)

frozen_groups = Table(
    "frozen_groups",
    metadata,
    Column("group", String(300), primary_key=True),
    Column("snapshot", String(64), primary_key=True),
)

lineage = Table(
    "lineage",
    metadata,
    Column("child_kind", String(16), primary_key=True),
    Column("child", String(130), primary_key=True),
    Column("parent_kind", String(16), primary_key=True),
    Column("parent", String(130), primary_key=True),
    Column("at", Float, nullable=False),
    Column("detail", Text, nullable=False),
    Index("ix_lineage_parent", "parent_kind", "parent"),
)

# What people collect in the console. They go with their samples.
pins = Table(
    "pins",
    metadata,
    Column("sample", String(64), primary_key=True),
    Column("actor", String(64), nullable=False),
    Column("at", Float, nullable=False),
)

selections = Table(
    "selections",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
)

selection_samples = Table(
    "selection_samples",
    metadata,
    Column("selection", String(64), primary_key=True),
    Column("sample", String(64), primary_key=True),
    Column("actor", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Index("ix_selection_samples_sample", "sample"),
)

views = Table(
    "views",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("query", Text, nullable=False),
    Column("shared", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
)

# One row for each time that a bundle was judged against another on the test side of a snapshot. `summary`:
# the reasons and the numbers that decided, as JSON.
gate_verdicts = Table(
    "gate_verdicts",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("candidate", String(130), nullable=False),
    Column("candidate_sha256", String(64), nullable=False),
    Column("incumbent", String(130), nullable=False),
    Column("incumbent_sha256", String(64), nullable=False),
    Column("snapshot", String(64), nullable=False),
    Column("snapshot_sha256", String(64), nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("at", Float, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("summary", Text, nullable=False),
    Index("ix_gate_verdicts_candidate", "candidate"),
    Index("ix_gate_verdicts_candidate_sha256", "candidate_sha256"),
)

# The hash is that of the archive beside the blobs. A name and version is published once.
published_bundles = Table(
    "published_bundles",
    metadata,
    Column("bundle", String(130), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("at", Float, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Index("ix_published_bundles_sha256", "sha256"),
)

# `spec`: campaigns.spec.CampaignSpec as JSON. `state`: draft, running, paused or ended. `dry_run`: the last
# estimate, as JSON.
campaigns = Table(
    "campaigns",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("spec", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(256), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("changed_at", Float, nullable=False),
    Column("changed_by", String(64), nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("dry_run", Text),
    Index("ix_campaigns_state", "state"),
)

vehicle_tags = Table(
    "vehicle_tags",
    metadata,
    Column("vehicle", String(64), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("value", String(64), nullable=False),
)

# One row, with id 1. `control`: what the budget's controller learned, as JSON.
fleet_budget = Table(
    "fleet_budget",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("bytes_per_day", BigInteger),
    Column("control", Text, nullable=False),
    Column("changed_at", Float, nullable=False),
    Column("changed_by", String(64), nullable=False),
)

# The desired configuration of each vehicle that had a campaign, as published, and what the vehicle answered.
# `document`: messages.Desired as JSON. `left_out`: why a campaign that wants the vehicle is not in it.
desired_documents = Table(
    "desired_documents",
    metadata,
    Column("vehicle", String(64), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    Column("campaigns", Text, nullable=False),
    Column("left_out", Text, nullable=False),
    Column("published_at", Float),
    Column("reported_version", BigInteger),
    Column("reported_at", Float),
    Column("accepted", Boolean),
    Column("bundle", String(130), nullable=False),
    Column("reason", String(512), nullable=False),
)

# A vehicle's refusal that names a campaign: it is left out for this vehicle until its bundle changes.
campaign_refusals = Table(
    "campaign_refusals",
    metadata,
    Column("vehicle", String(64), primary_key=True),
    Column("campaign", String(40), primary_key=True),
    Column("bundle", String(130), nullable=False),
    Column("at", Float, nullable=False),
    Column("reason", String(512), nullable=False),
)

# A person, or a program that has tokens. `password`: an argon2 hash; none if the account signs in by OIDC
# (`issuer`, `subject`) or not at all.
accounts = Table(
    "accounts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("password", Text),
    Column("issuer", String(300)),
    Column("subject", String(300)),
    Column("disabled_at", Float),
    Column("created_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
    Column("seen_at", Float),
    Index("uq_accounts_subject", "issuer", "subject", unique=True),
)

# `hash`: SHA-256 of what the cookie has. `id` names the session on pages and in the audit log.
sessions = Table(
    "sessions",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("id", String(32), nullable=False),
    Column("account", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("address", String(64), nullable=False),
    Column("agent", String(200), nullable=False),
    Index("ix_sessions_account", "account"),
    Index("ix_sessions_expires_at", "expires_at"),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("hash", String(64), nullable=False),
    Column("account", String(64), nullable=False),
    Column("title", String(100), nullable=False),
    Column("role", String(16), nullable=False),
    Column("areas", String(300), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("revoked_at", Float),
    Column("used_at", Float),
    Index("uq_api_tokens_hash", "hash", unique=True),
    Index("ix_api_tokens_account", "account"),
)

# `account`: whose password the link sets; "" makes the first admin.
one_time_links = Table(
    "one_time_links",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("account", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
)

# Keys that all consoles of a database share.
secrets = Table(
    "secrets",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", String(128), nullable=False),
    Column("created_at", Float, nullable=False),
)

# Answers to requests with an Idempotency-Key; without a status while the first one runs.
answered_requests = Table(
    "answered_requests",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("caller", String(64), nullable=False),
    Column("request", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("status", Integer),
    Column("headers", Text),
    Column("body", LargeBinary),
    Index("ix_answered_requests_caller", "caller", "at"),
    Index("ix_answered_requests_at", "at"),
)

# Histograms of scores by time: of all frames (`source` "all", from heartbeats) and of the random stream
# ("stream"). `by` and `slice`: "" for all, else a vehicle, a region or a value of the context.
score_hours = Table(
    "score_hours",
    metadata,
    Column("source", String(8), primary_key=True),
    Column("by", String(128), primary_key=True),
    Column("slice", String(128), primary_key=True),
    Column("bundle", String(130), primary_key=True),
    Column("score", String(128), primary_key=True),
    Column("begins", BigInteger, primary_key=True, autoincrement=False),
    Column("frames", Float, nullable=False),
    Column("bins", LargeBinary, nullable=False),
)

# The last row of `telemetry` ("all") and of `samples` ("stream") that is in score_hours.
rolled_up = Table(
    "rolled_up",
    metadata,
    Column("source", String(8), primary_key=True),
    Column("seq", BigInteger, nullable=False),
)
