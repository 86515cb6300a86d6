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
  ``.mending``            `FixUps.as_dict`: modules whose calls are given other sizes, those that are
                          replayed, and attention that lost whole heads; or null where the model's code serves as it is
  ``.inputs``             form of the example inputs, `ExampleInputs.describe`, or null
``aliases``               for each name that shares a tensor, the name it is stored under
``certificate``           `Certificate.as_dict`: measured differences to the gated model, or null
``fingerprint``           `Fingerprint.as_dict`: what the model computes on given inputs, or null
``costs``                 ``{"macs": {"dense", "compact"}, "params": {...}}``: per sample, exact
``extra``                 whatever the writer added (recipe name, budget, accuracy; of recipes' data the name,
                          ``mean``, ``deviation`` and ``largest_pixel`` of inputs, and ``class_names``)
``weights_sha256``        SHA-256 of the header's entries for tensors, as JSON with sorted keys and without
                          spaces, followed by all bytes after the header
``structure_sha256``      `structure_of` the compact model: its modules' classes, plain attributes, shapes, and
                          what the fix-ups made of their forwards (since 1.1)
``versions``              of torch, prunegate and the model's library, which the structure depends on (since 1.1)
``document_sha256``       SHA-256 of this document without this entry, as JSON with sorted keys, without spaces
                          and in ASCII (since 1.1)
========================  ==============================================================================

Fields that a newer minor version added are kept as they are (`Document.unknown`) and written back.

Reading executes nothing from the file. The builder is one of timm's, torchvision's or our own model names;
plans are masks and sizes, which may only make a model smaller; what modules that are fixed up run is found again by
tracing the dense model, by the same deterministic analysis.

What the file says is not taken on trust, whatever its hashes say. The dense model is built without data and traced
on the stored form of the inputs: masks have to be those of whole units of its channel groups, sizes of layers those
of their tensors, other sizes what the run's tensors have before and after the cut. The compact model's structure has
to have the stored hash. If it has not and the library's version is another, if the file is of before 1.1, or if the
run cannot be followed and sizes were guessed, the model has to compute the stored fingerprint.

It costs no more than the file explains: entries are counted before JSON is parsed, no more parameters and modules
are made than the stored tensors ask for, and the fingerprint is computed only after a run without data has shown that
it makes outputs of the stored shapes with about the stored MACs, and how large its tensors are. A file from a
stranger can at worst be refused, with a `CheckpointError`.
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
