"""Compact checkpoints: one safetensors file that says how to build the model it holds.

The file is an ordinary safetensors file: the compact model's parameters and buffers by name. A name that
shares its tensor with another is listed under ``aliases`` instead. The metadata entry ``prunegate`` is a
JSON document:

========================  ==============================================================================
field                     meaning
========================  ==============================================================================
``version``               ``"major.minor"`` of this format; a newer minor loads, a newer major is refused
``builder``               ``{"library", "name", "arguments"}`` of the dense model, or null: hand it in
``class``                 qualified name of the dense model's class, for people; never imported
``steps``                 list of one or more compactions, first to last, each of them
  ``.plan``               `Plan.as_dict`: kept units, kept positions of every cut axis, size attributes
  ``.mending``            `Mending.as_dict`: modules that are played back, or null where the code serves
  ``.inputs``             form of the example inputs, `ExampleInputs.describe`, or null
``aliases``               for each name that shares a tensor, the name it is stored under
``certificate``           `Certificate.as_dict`: measured differences to the gated model, or null
``fingerprint``           `Fingerprint.as_dict`: what the model computes on given inputs, or null
``costs``                 ``{"macs": {"dense", "compact"}, "params": {...}}``: per sample, exact
``extra``                 whatever the writer added (recipe name, budget, accuracy)
``weights_sha256``        SHA-256 of the header's entries for tensors, as JSON with sorted keys and without
                          spaces, followed by all bytes after the header
========================  ==============================================================================

Fields that a newer minor version added are kept as they are (`Document.unknown`) and written back.

Reading executes nothing from the file. The builder is one of timm's, torchvision's or our own model names;
plans are masks and sizes, which may only make a model smaller; modules that are played back are traced again
from the dense model by the same deterministic analysis. The header's size is looked at before it is read, and
the dense model is built without data, and no larger than the file's own tensors say. A file from a stranger
can at worst be refused, with a `CheckpointError`.
"""

from __future__ import annotations

from prunegate.checkpoint.document import FORMAT, Document
from prunegate.checkpoint.files import read_document, save, stored_sizes
from prunegate.checkpoint.fingerprint import Fingerprint
from prunegate.checkpoint.loading import load
from prunegate.checkpoint.origin import Origin, origin_of, set_origin
from prunegate.checkpoint.steps import Step, StoredPlan, load_plan

__all__ = [
    "FORMAT",
    "Document",
    "Fingerprint",
    "Origin",
    "Step",
    "StoredPlan",
    "load",
    "load_plan",
    "origin_of",
    "read_document",
    "save",
    "set_origin",
    "stored_sizes",
]
