"""The same data as TensorFlow Datasets, without TensorFlow: for tools that speak TFDS. Training reads records."""

from data_pipelines.tfds.builder import EarthSamples, to_sample
from data_pipelines.tfds.labelled import LabelledEarth

__all__ = ["EarthSamples", "LabelledEarth", "to_sample"]
