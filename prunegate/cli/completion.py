"""`prunegate completion`: a script for shell completion of commands, options, choices and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from prunegate.cli.console import say

SHELLS = ("bash", "zsh")

# `complete -o default`: if nothing of ours matches, and for values, the shell completes file names.
_SCRIPT = """\
_prunegate() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD - 1]}}" command="" word i
    for ((i = 1; i < COMP_CWORD; i++)); do
        word="${{COMP_WORDS[i]}}"
        case "$command $word" in
{known}
        esac
    done
    COMPREPLY=()
    case "$command $previous" in
{choices}
    esac
    case "$command" in
{words}
    esac
}}
complete -o default -F _prunegate prunegate
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def completion_command(arguments: argparse.Namespace) -> int:
    say(completion_script(arguments.parser, arguments.shell).rstrip("\n"))
    return 0


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script for a shell, generated from a parser's commands and options.

    Args:
        shell: One of `SHELLS`; zsh uses bash's script.
    """
    commands = dict(_commands(parser, ""))
    known = [f'            "{_parent(path)} {path.split()[-1]}") command="{path}" ;;' for path in commands if path]
    choices, words = [], []
    for path, command in commands.items():
        options: list[str] = []
        positional: list[str] = []
        for action in command._actions:
            options += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                positional += list(action.choices)
            elif action.choices and action.option_strings:
                offered = _offer(" ".join(map(str, action.choices)))
                choices += [f'        "{path} {option}") {offered}; return ;;' for option in action.option_strings]
            elif action.choices:
                positional += list(map(str, action.choices))
        lines = _offer(" ".join(positional)) if positional else ":"
        words.append(
            f'        "{path}") if [[ "$current" == -* ]]; then {_offer(" ".join(options))}; else {lines}; fi ;;'
        )
    script = _SCRIPT.format(known="\n".join(known), choices="\n".join(choices), words="\n".join(words))
    return (_ZSH if shell == "zsh" else "") + script


def _commands(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parser of every command by its path, such as ``recipe keys``; the program's own path is empty."""
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from _commands(command, f"{path} {name}".strip())


def _parent(path: str) -> str:
    return path.rpartition(" ")[0]


def _offer(words: str) -> str:
    return f'COMPREPLY=($(compgen -W "{words}" -- "$current"))'
