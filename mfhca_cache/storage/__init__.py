"""The contract between the stages: shards, receipts, and the cache that is opened from them."""
