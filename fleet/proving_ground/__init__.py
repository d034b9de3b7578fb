"""Provides what tests and benchmarks run against: real services, small bundles, pictures, hostile bytes.

services     starts Mosquitto, PostgreSQL and an S3 stand-in on free loopback ports
hardened     runs Mosquitto with the shipped configuration, certificates and passwords
client       a bare MQTT vehicle that sends exactly what it is told to send
bundles      writes a small real bundle
pictures     makes pictures, folders and clips from two bundled photographs
street_video, erring_detector  render drives with exact boxes, and answer as a detector that errs on request
foreign_bytes  files that a collector must refuse
faults/      a whole fleet of processes that can be killed, cut off and starved

The package is for this repository: no wheel contains it. Doubles for your own tests are in
`misfire_runtime.testing`.
"""
