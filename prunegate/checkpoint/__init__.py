"""Compact checkpoints: one safetensors file that says how to build the model it holds.

The file is an ordinary safetensors file: the compact model's parameters and buffers by name. A name that
shares its tensor with another is listed under ``aliases`` instead. The metadata entry ``prunegate`` is a
JSON document:

========================  ==============================================================================
field                     meaning
========================  ==============================================================================
``version``               ``"major.minor"`` of this format; a newer minor loads, a newer major is refused
``builder``               ``{"library", "name", "arguments"}`` of the dense model, or null: pass it to load ``class``
qualified name of the dense model's class, for display; never imported ``steps``                 list of one or more
compactions, first to last, each of them
  ``.plan``               `Plan.as_dict`: kept units, kept positions of every cut axis, size attributes
  ``.mending``            `FixUps.as_dict`: modules with rewritten sizes in their calls, those that are replayed, and
                          attention that lost whole heads; or null if the model's code needs none
  ``.inputs``             form of the example inputs, `ExampleInputs.describe`, or null
``aliases``               for each name that shares a tensor, the name it is stored under
``certificate``           `Certificate.as_dict`: measured differences from the gated model, or null ``fingerprint``
`Fingerprint.as_dict`: the model's outputs on given inputs, or null ``costs``                 ``{"macs": {"dense",
"compact"}, "params": {...}}``: per sample, exact ``extra``                 data added by the writer (recipe name,
                          budget, accuracy; of recipes' data the name, ``mean``, ``deviation`` and ``largest_pixel`` of
                          inputs, and ``class_names``)
``weights_sha256``        SHA-256 of the header's entries for tensors, as JSON with sorted keys and without
                          spaces, followed by all bytes after the header
``structure_sha256``      `structure_of` the compact model: its modules' classes, plain attributes, shapes, and
                          what the fix-ups made of their forwards (since 1.1)
``versions``              of torch, prunegate and the model's library, which the structure depends on (since 1.1)
``document_sha256``       SHA-256 of this document without this entry, as JSON with sorted keys, without spaces
                          and in ASCII (since 1.1)
========================  ==============================================================================

Fields of newer minor versions are kept unchanged (`Document.unknown`) and written back.

Reading executes nothing from the file. The builder is one of timm's, torchvision's or prunegate's model names. Plans
are masks and sizes, which can only make a model smaller. Fix-ups are derived again by tracing the dense model, with the
same deterministic analysis.

The contents of the file are not trusted, even if its hashes match. The dense model is built without data and traced on
the stored form of the inputs: masks have to be those of whole units of its channel groups, sizes of layers those of
their tensors, and other sizes those of the run's tensors before and after the cut. The compact model's structure has to
have the stored hash. If it does not and the library's version differs, if the file is older than 1.1, or if the run
cannot be traced and sizes were guessed, the model's outputs have to match the stored fingerprint.

The cost of loading is bounded by the file: entries are counted before JSON is parsed, no more parameters and modules
are created than the stored tensors need, and the fingerprint is computed only after a run without data has shown that
the outputs have the stored shapes, that the MACs are about the stored ones, and how large the tensors are. An untrusted
file can at worst be refused with a `CheckpointError`.
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
