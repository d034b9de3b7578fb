"""Defines the errors that misfire raises on purpose.

MisfireError                 catch this in a command; its text is meant for users
├── ConfigError              a configuration file or option is wrong: has file, key, expected value
├── BundleError              a bundle is missing, changed, of an unknown schema, or does not fit
├── EngineError              the inference engine did not load, or gave an unusable answer
├── SourceError              a frame source cannot be opened or went away for good
├── ImageError               an image cannot be read: has its name and the reason
├── PrivacyError             a picture could not be anonymised, so it must not be written
├── MessageError             a received message is malformed, too large, or of an unknown version
├── SpoolError               the spool cannot be opened or written
│   ├── DiskFullError        there is no room; nothing was half-written
│   └── SpoolInUseError      another process has the spool open
└── MissingExtraError        a command needs an extra that is not installed: names it
"""

from __future__ import annotations


class MisfireError(Exception):
    """Base class of all errors; the text says what is wrong, where, and what to do."""


class ConfigError(MisfireError):
    """Reports that a configuration file or option is wrong."""


class BundleError(MisfireError):
    """Reports that a bundle is missing, changed, of an unknown schema, or does not fit this use."""


class EngineError(MisfireError):
    """Reports that the inference engine did not load, or gave an unusable answer."""


class SourceError(MisfireError):
    """Reports that a frame source cannot be opened, or has ended unexpectedly for good."""


class ImageError(MisfireError):
    """Reports that an image cannot be read."""


class PrivacyError(MisfireError):
    """Reports that a picture could not be anonymised as configured; it must not be written anywhere."""


class MessageError(MisfireError):
    """Reports that a received message is malformed, too large, or of an unknown version."""


class SpoolError(MisfireError):
    """Reports that the spool cannot be opened or written."""


class DiskFullError(SpoolError):
    """Reports a full disk; the sample was not kept, and nothing was written in part."""


class SpoolInUseError(SpoolError):
    """Reports that another process has the spool open."""


class MissingExtraError(MisfireError):
    """Reports that a command needs an extra that is not installed."""
