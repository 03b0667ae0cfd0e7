"""Finished records in a folder: what a kill leaves is whole, and the next start goes on from it."""

from simpo.store.shards import PART, Record, write_whole
from simpo.store.store import Store, read_records, read_settings_of, read_summary

__all__ = ["PART", "Record", "Store", "read_records", "read_settings_of", "read_summary", "write_whole"]
