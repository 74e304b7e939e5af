"""The `qgraph` command: subcommands, exit codes, and what is printed when something goes wrong.

Exit codes: 0 done, 1 could not (also a flag's value that cannot be used), 2 usage (what click refuses), 3 a check
failed, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from qgraph.errors import CheckFailed, QGraphError, suggest

COMMANDS = {  # name -> line of help; each lives in the file of its name
    "freeze": "Quantize a model and write the frozen checkpoint.",
    "convert": "Carry a float model to ONNX, ncnn or Tengine, or to MXNet's newest files.",
    "simulate": "What strategies of quantization would cost, one or a table of them.",
    "tune": "The cheapest form of a network that keeps its accuracy.",
    "eval": "Accuracy of a model, and its agreement with another.",
    "compare": "Where a frozen model departs from the float one.",
    "diff": "What changed between two frozen models, tables or reports.",
    "doctor": "What makes quantization go wrong, found before it does.",
    "explain": "What became of one layer, and what it costs.",
    "report": "The page of an earlier freeze, from its PREFIX.report.json.",
    "inspect": "What a model is made of, and what would be quantized.",
    "passes": "List the graph passes, or explain one.",
    "targets": "List the targets, and what they make of the bits of a layer.",
    "ops": "List the ops and where each is carried, or explain one.",
    "info": "Versions, engines and processor, for a report of a bug.",
}


class _Lazy(click.Group):
    """Loads a subcommand's file when it is called, so that --help is fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"qgraph.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(self, ctx: click.Context,
                        args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            guess = suggest(args[0], COMMANDS, "did you mean {}? ")
            raise click.UsageError(f"no command {args[0]!r}; {guess}There are {', '.join(COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _tell_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from qgraph.commands.info import version_line

        click.echo(version_line())
        ctx.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_tell_version,
              help="Show the versions of qgraph and its engines, and exit.")
def cli() -> None:
    """A quantization compiler for Apache MXNet networks.

    \b
    qgraph inspect net-symbol.json
    qgraph freeze  net-symbol.json --exclude conv0 --calib kl --calib-data images.rec
    qgraph simulate net-symbol.json --data images.rec --skip ::10 --weight-bits 8,6,4
    qgraph convert net-symbol.json --to onnx --input-shape data:1,3,224,224
    qgraph eval    net-quantized --data images.rec --reference net
    qgraph compare net net-quantized --data images.rec
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. A mistake of the user is one line, a bug of ours a traceback."""
    _tell_of_signals()
    try:
        code = cli.main(args=None if argv is None else list(argv), prog_name="qgraph", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except CheckFailed as error:
        return _say("check failed", error, 3)
    except QGraphError as error:
        return _say("error", error, 1)
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        return _say("interrupted", str(error.__cause__ or error) or "nothing was written", 130)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return 141
    except MemoryError:
        return _say("error", "out of memory; a smaller --batch-size needs less", 1)
    except OSError as error:
        if error.filename is None:
            raise
        return _say("error", f"{error.filename}: {error.strerror}", 1)


def _tell_of_signals() -> None:
    """Where an engine dies of a signal, say in which of our lines; MXNet's own handler knows only its own."""
    os.environ.setdefault("MXNET_USE_SIGNAL_HANDLER", "0")
    with contextlib.suppress(ValueError, OSError):  # stderr is no file
        faulthandler.enable()


def _say(what: str, message: object, code: int) -> int:
    click.echo(f"qgraph: {what}: {' '.join(str(message).split())}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
