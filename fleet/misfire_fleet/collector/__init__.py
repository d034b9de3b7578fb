"""The collector: takes offers and samples from vehicles and says `stored` when they are durable."""

from misfire_fleet.collector.collector import Collector

__all__ = ["Collector"]
