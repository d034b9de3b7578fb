"""misfire on the vehicle: score live frames, keep the informative ones, hand them to the fleet.

Also the ground floor of the house: the contracts that every unit shares are here (`bundle`, `messages`,
`preprocess`). Nothing in this package imports torch or another misfire unit.
"""

__version__ = "0.2.0.dev0"
