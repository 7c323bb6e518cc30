"""SkySense: factorised spatio-temporal encoder, multi-granularity contrastive learning, geo-context prototypes."""
