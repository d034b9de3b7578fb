"""Defines the errors that the fleet's programs raise; all are MisfireErrors, so a command catches one type.

MisfireError (misfire_runtime.errors)
├── StoreError               the store's content or its settings are wrong: waiting does not help
│   ├── SampleGoneError      the sample is not, or no longer, in the store
│   ├── RowRefusedError      the database refuses the values of a row
│   ├── VerdictRefusedError  a verdict is wrong in itself: its label, its class, a box
│   ├── VerdictConflictError the person judged the sample meanwhile, in another window
│   ├── CampaignGoneError    there is no campaign of that name
│   ├── CampaignConflictError  the campaign's state or name does not allow it
│   └── AccountError         an account, a password, a token or a link will not do
│       ├── NoSuchAccountError   there is no such account, session or token
│       └── AccountConflictError what is wished does not go with what there is
├── StoreUnavailableError    database or blob store do not work now: try again later
├── TooManyRequestsError     somebody asks too often: wait as long as it says
├── CheckFailedError         a sample could not be checked, which proves nothing about it: try again later
├── LabelToolError           a label tool refuses a request, or is not set up for it: waiting does not help
├── LabelToolUnavailableError  a label tool does not work now: try again later
└── CollectorError           the collector cannot work with this broker
"""

from __future__ import annotations

from misfire_runtime.errors import MisfireError


class StoreError(MisfireError):
    """Reports that the store's content or its settings are wrong."""


class SampleGoneError(StoreError):
    """Reports that a sample is not, or no longer, in the store."""


class RowRefusedError(StoreError):
    """Reports that the database refuses a row's values. The row is at fault if others are accepted."""


class VerdictRefusedError(StoreError):
    """Reports that a verdict cannot be recorded as it is; nothing of it was.

    Attributes:
        problems: a sentence for each thing that is wrong.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class VerdictConflictError(StoreError):
    """Reports that a sample's verdict is another one than the person saw when they gave theirs."""


class CampaignGoneError(StoreError):
    """Reports that there is no campaign of that name."""


class CampaignConflictError(StoreError):
    """Reports that a campaign's state, or a name that is taken, does not allow a change."""


class StoreUnavailableError(MisfireError):
    """Reports that database or blob store do not work now. Nothing was stored in part; try again later."""


class CheckFailedError(MisfireError):
    """Reports that a sample could not be checked: no time, no memory, or the decoder's process ended.

    This proves nothing about the sample, which may be offered again. A fault of the sample itself, such as a
    cost above a limit, is an ImageError.
    """


class CollectorError(MisfireError):
    """Reports that the collector cannot work with this broker."""


class LabelToolError(MisfireError):
    """Reports that a label tool refuses a request, or has a project that does not fit.

    Attributes:
        status: of the tool's HTTP answer; 0 if there was none.
    """

    def __init__(self, sentence: str, *, status: int = 0) -> None:
        super().__init__(sentence)
        self.status = status


class LabelToolUnavailableError(MisfireError):
    """Reports that a label tool does not work now. Nothing is lost; run the command again later."""


class AccountError(StoreError):
    """Reports that an account, a password, a token or a link will not do; nothing was changed."""


class NoSuchAccountError(AccountError):
    """Reports that there is no such account, session or token."""


class AccountConflictError(AccountError):
    """Reports that a change does not go with what there is: a name in use, the last admin."""


class TooManyRequestsError(MisfireError):
    """Reports that somebody asks too often.

    Attributes:
        retry_after_s: seconds to wait.
    """

    def __init__(self, sentence: str, *, retry_after_s: float) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s
