"""JSON schemas of strangers: bounds, a form that the grammar compiler accepts, and trial compilation in a process."""

from minigpt4_serve.json_schema.prepare import PreparedSchema, prepare_schema
from minigpt4_serve.json_schema.trial import TrialCompiler

__all__ = ["PreparedSchema", "TrialCompiler", "prepare_schema"]
