"""Prepare a corpus ahead of training: read it, learn its vocabulary, and store it
as tokens.

    python scripts/prepare_corpus.py corpus=enwiki_sample
    python scripts/prepare_corpus.py corpus=files corpus.train='books/*.txt'

``train.py`` does the same when it finds nothing prepared. Prints sizes, licence
and speed. The same command again goes on with an interrupted preparation and
shows a finished one.
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command()  # before anything slow is imported

import json
from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from omegaconf import DictConfig

from cope.building import arguments, build
from cope.cli import reporting_errors, run_hydra_command
from cope.errors import UserError


@hydra.main(version_base="1.3", config_path="../configs", config_name="prepare_corpus")
def main(config: DictConfig) -> None:
    # Imported here, so that --help, and what is told of a slip, need not wait for them.
    from cope.corpora.prepared import MANIFEST, prepare
    from cope.corpora.tokenizer import TokenizerSettings

    with reporting_errors(), _named_as_here():
        asked = TokenizerSettings(**arguments(config.tokenizer, TokenizerSettings, "tokenizer"))
        corpus = build(config.corpus, "corpus")
        tiny = corpus.size_of_tiny()
        settings = asked.fitting(*tiny) if tiny else asked  # as train.py takes it
        if settings != asked:
            print(
                f"corpus {corpus.name} has little text: a vocabulary of {settings.vocab_size} tokens instead of "
                f"{asked.vocab_size} (tokenizer.vocab_size)."
            )
        prepared = prepare(corpus, settings, config.data_dir)
    splits = json.loads((prepared.folder / MANIFEST).read_bytes())["splits"].values()
    seconds = sum(sizes["seconds"] for sizes in splits)
    if seconds:
        print(f"  encoded at {sum(sizes['num_tokens'] for sizes in splits) / seconds:,.0f} tokens/s a core")
    print(f"  vocabulary: {settings.kind}, {settings.vocab_size:,} tokens")
    print(f"folder: {prepared.folder}")


@contextmanager
def _named_as_here() -> Iterator[None]:
    """What is refused by the name that it has in a run's settings is told by the name that it has here."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("task.tokenizer.", "tokenizer.")) from error


if __name__ == "__main__":
    run_hydra_command(main, "../configs", "prepare_corpus")
