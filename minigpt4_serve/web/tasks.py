"""What can be asked with one click: the tasks of the MiniGPT-4 paper, v2's task tags, and examples. Pure data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from minigpt4_serve.client.vision import DEFAULT_QUESTION

__all__ = ["EXAMPLES", "EXAMPLES_FOLDER", "GO_ON", "TAGS", "TASKS", "Example", "Tag", "Task", "as_dicts"]

EXAMPLES_FOLDER = Path(__file__).parent / "examples"


@dataclass(frozen=True)
class Task:
    """One click, one question."""

    label: str
    question: str


@dataclass(frozen=True)
class Tag:
    """One of MiniGPT-v2's task tags: the text a question begins with.

    Attributes:
        whole: the text is a whole question; otherwise the person writes on.
        hint: what to write, or to do.
        needs_box: a part of the picture must be marked first.
    """

    label: str
    text: str
    hint: str
    whole: bool = False
    needs_box: bool = False


@dataclass(frozen=True)
class Example:
    """A picture that ships with the page, and a question that the embedded model can answer."""

    name: str
    picture: str
    question: str


TASKS = (
    Task("Describe it", DEFAULT_QUESTION),
    Task("Tell a story", "Write a story about this picture."),
    Task("Write a poem", "Write a poem about this picture."),
    Task("Advertise it", "Write an advertisement for what is in this picture."),
    Task("Get the recipe", "How do I make this dish? Write the recipe with its ingredients and steps."),
    Task("Explain the joke", "Explain why this picture is funny."),
    Task("Caption for a blog", "Write a caption for this picture, to be posted on my blog."),
    Task("Improve this design", "How could the design in this picture be improved?"),
    Task(
        "Website from a sketch",
        "Write one HTML file, with its CSS and JavaScript inside, for the website drawn in this picture.",
    ),
)
GO_ON = {"Write a story about this picture.": Task("Go on with the story", "Go on with the story.")}
"""What is offered below the answer to a question."""
GO_ON["Go on with the story."] = GO_ON["Write a story about this picture."]

TAGS = (
    Tag("Describe with boxes", "[grounding] describe this image in detail", "Every thing gets its box", whole=True),
    Tag("Find something", "[refer] ", "Write what to find, such as: the dog on the left"),
    Tag("Detect all", "[detection] ", "Write what to find everywhere, such as: person"),
    Tag("What is here?", "[identify] what is this ", "Mark a part of the picture", needs_box=True),
    Tag("Short answer", "[vqa] ", "Write a question that a word or two can answer"),
    Tag("Short caption", "[caption] briefly describe this image", "One sentence", whole=True),
)

EXAMPLES = (
    Example("A house and a tree", "village.png", "What is in this picture?"),
    Example("A night sky", "night.png", "What is the background?"),
    Example("Three fish", "pond.png", "How many objects are there?"),
    Example("A heart", "love.png", DEFAULT_QUESTION),
)


def as_dicts(items: Sequence[Task | Tag | Example]) -> list[dict[str, object]]:
    """As the browser gets them."""
    return [asdict(item) for item in items]
