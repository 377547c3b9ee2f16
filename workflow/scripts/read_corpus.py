"""Read the texts of one corpus."""

from pathlib import Path

from aird.prompts.corpora import read_corpus
from aird.settings.prompts import Corpus
from aird.support.files import write_json_lines

from arguments import run


def main(settings: Corpus, output: Path) -> None:
    """Run the script."""
    texts = read_corpus(settings)
    print(f"{len(texts)} texts of {sum(map(len, texts))} characters")
    write_json_lines(output, [{"text": text} for text in texts])


if __name__ == "__main__":
    run(main)
