"""SkySense runs; `huge` documents every key."""
