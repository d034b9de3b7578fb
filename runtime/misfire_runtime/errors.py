"""Everything that misfire raises on purpose.

MisfireError                 catch this at a program's edge; its text is fit for a user
├── ConfigError              a configuration file or option is wrong: says file, key, expected value
├── BundleError              a bundle is missing, changed, of an unknown schema, or does not fit
├── EngineError              the inference engine did not load, or gave an unusable answer
├── SourceError              a frame source cannot be opened or went away for good
├── ImageError               an image cannot be read: says which, and why
├── PrivacyError             a picture could not be made private, so it does not leave
├── MessageError             a message from the wire is malformed, too large, or of an unknown version
├── SpoolError               the spool cannot be opened or written
│   ├── DiskFullError        there is no room; nothing was half-written
│   └── SpoolInUseError      another process has the spool open
└── MissingExtraError        a command needs an extra that is not installed: names it
"""

from __future__ import annotations


class MisfireError(Exception):
    """Base of all; its text says what was wrong, where, and what to do."""


class ConfigError(MisfireError):
    """A configuration file or option is wrong."""


class BundleError(MisfireError):
    """A bundle is missing, changed, of an unknown schema, or does not fit this use."""


class EngineError(MisfireError):
    """The inference engine did not load, or gave an unusable answer."""


class SourceError(MisfireError):
    """A frame source cannot be opened, or went away for good."""


class ImageError(MisfireError):
    """An image cannot be read."""


class PrivacyError(MisfireError):
    """A picture could not be made private as configured; it must not be written anywhere."""


class MessageError(MisfireError):
    """A message from the wire is malformed, too large, or of an unknown version."""


class SpoolError(MisfireError):
    """The spool cannot be opened or written."""


class DiskFullError(SpoolError):
    """No room on the disk; the sample was not kept and nothing was half-written."""


class SpoolInUseError(SpoolError):
    """Another process has the spool open."""


class MissingExtraError(MisfireError):
    """A command needs an extra that is not installed."""
