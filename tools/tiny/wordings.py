"""How people ask: patterns for every kind of question, in words only. Knows no scenes and no answers.

``[a|b|]`` stands for any of its parts, ``{x}`` for a thing with its article, ``{y}`` for another, ``{a}`` for one without
article, ``{n}`` for several, ``{c}`` for a colour. ``NEW`` holds wordings for evaluation only: training must not see them.
"""

import random
import re

__all__ = ["NEW", "TRAINED", "word"]

_PIC = "[picture|image|drawing|photo|pic]"
_IN = f"[| in [this|the] {_PIC}| here| there]"
_ASK = "[||||please tell me|can you tell me|tell me|do you know|could you say|i want to know|say]"
_THING = "[thing|object|shape|item|one]"
_COLOUR = "[colour|color]"

TRAINED: dict[str, tuple[str, ...]] = {
    "colour": (
        f"[what|which] {_COLOUR} is {{x}}{_IN}",
        f"[what|which] {_COLOUR} does {{x}} have{_IN}",
        f"what is the {_COLOUR} of {{x}}{_IN}",
        f"what's the {_COLOUR} of {{x}}",
        f"{_ASK} [what|which] {_COLOUR} {{x}} is",
        f"{_ASK} the {_COLOUR} of {{x}}",
        f"{{x}} is [what|which] {_COLOUR}",
        f"{{x}} has [what|which] {_COLOUR}",
        f"{_COLOUR} of {{x}}",
        f"name the {_COLOUR} of {{x}}",
        "how is {x} [coloured|colored|painted]",
        f"in [what|which] {_COLOUR} is {{x}} [drawn|painted|shown]",
        f"what {_COLOUR} [was|is] used for {{x}}",
    ),
    "which": (
        f"[what|which {_THING}] is {{c}}{_IN}",
        f"[what|which] is the {{c}} {_THING}{_IN}",
        f"what's the {{c}} {_THING}",
        f"{_ASK} [what|which {_THING}] is {{c}}",
        f"{_ASK} what the {{c}} {_THING} is",
        f"what [kind of|sort of|] [thing|object|shape] is {{c}}{_IN}",
        f"[which|what] {_THING} has the {_COLOUR} {{c}}",
        f"name the {{c}} {_THING}",
        "what do you see in {c}",
        "what is [drawn|painted|shown] in {c}",
        f"identify the {{c}} {_THING}",
        f"the {{c}} {_THING} is what",
        f"what {{c}} {_THING} [is there|do you see]{_IN}",
    ),
    "count_all": (
        f"how many [things|objects|shapes|items] are [there|in [this|the] {_PIC}|here|shown|drawn|visible]",
        f"how many [things|objects|shapes|items] [can|do] you see{_IN}",
        "[count|please count|count up] [all|all the|the] [things|objects|shapes|items]",
        f"{_ASK} how many [things|objects|shapes|items] there are{_IN}",
        f"what is the [number|count|total number] of [things|objects|shapes|items]{_IN}",
        f"how many [things|objects|shapes|items] does [this|the] {_PIC} [have|show|contain]",
        "[number|count] of [things|objects|shapes|items]",
        "how many [things|objects|shapes|items]",
        f"how many are there{_IN}",
        f"how many [things|objects|shapes|items] in [total|all]{_IN}",
    ),
    "count": (
        f"how many {{n}} are [there|in [this|the] {_PIC}|here|shown|drawn|visible]",
        f"how many {{n}} [can|do] you see{_IN}",
        "[count|please count] [the|all|all the|] {n}",
        f"{_ASK} how many {{n}} there are{_IN}",
        f"what is the [number|count] of {{n}}{_IN}",
        f"how many {{n}} does [this|the] {_PIC} [have|show|contain]",
        "number of {n}",
        "how many {n}",
        "how many of the [things|objects|shapes] are {n}",
    ),
    "exists": (
        f"is there {{a}}{_IN}",
        f"[can|do] you see {{a}}{_IN}",
        f"{_ASK} [if|whether] there is {{a}}{_IN}",
        f"does [this|the] {_PIC} [have|show|contain] {{a}}",
        f"is {{a}} [in [this|the] {_PIC}|there|here|shown|visible|present]",
        f"are there any {{n}}{_IN}",
        f"[any|do you see any|can you see any|are any] {{n}}{_IN}",
        f"is {{a}} [drawn|shown|to be seen] [here|in [this|the] {_PIC}]",
        f"do we have {{a}}{_IN}",
        f"has [this|the] {_PIC} got {{a}}",
        f"there is {{a}}{_IN}, [right|correct|yes or no|isn't there]",
    ),
    "where": (
        f"where is {{x}}{_IN}",
        "where's {x}",
        f"{_ASK} where {{x}} is{_IN}",
        "where [can|do] [i|you|we] [find|see] {x}",
        f"in [what|which] [part|corner|area|place] of the {_PIC} is {{x}}",
        "what is the [position|place|location] of {x}",
        "[locate|find|point out] {x}",
        "[position|place|location] of {x}",
        f"where in [this|the] {_PIC} is {{x}}",
        "at [what|which] [place|position] is {x} [drawn|shown|]",
        "{x} is where",
    ),
    "left": (
        f"[what|which {_THING}] is [left of|to the left of|on the left of|on the left side of] {{x}}{_IN}",
        "what [can|do] you see [left of|to the left of|on the left of] {x}",
        f"{_ASK} what is [left of|to the left of|on the left of] {{x}}",
        "what's [left of|to the left of] {x}",
        f"name the {_THING} [left of|to the left of] {{x}}",
        "[left of|to the left of] {x} [is|there is] what",
        f"which {_THING} [is|stands|lies] [left of|to the left of] {{x}}",
    ),
    "right": (
        f"[what|which {_THING}] is [right of|to the right of|on the right of|on the right side of] {{x}}{_IN}",
        "what [can|do] you see [right of|to the right of|on the right of] {x}",
        f"{_ASK} what is [right of|to the right of|on the right of] {{x}}",
        "what's [right of|to the right of] {x}",
        f"name the {_THING} [right of|to the right of] {{x}}",
        "[right of|to the right of] {x} [is|there is] what",
        f"which {_THING} [is|stands|lies] [right of|to the right of] {{x}}",
    ),
    "above": (
        f"[what|which {_THING}] is [above|over|higher than] {{x}}{_IN}",
        "what [can|do] you see [above|over] {x}",
        f"{_ASK} what is [above|over] {{x}}",
        "what's [above|over] {x}",
        f"name the {_THING} [above|over] {{x}}",
        "[above|over] {x} [is|there is] what",
        f"which {_THING} [is|stands|lies] [above|higher than] {{x}}",
    ),
    "below": (
        f"[what|which {_THING}] is [below|under|beneath|lower than] {{x}}{_IN}",
        "what [can|do] you see [below|under|beneath] {x}",
        f"{_ASK} what is [below|under|beneath] {{x}}",
        "what's [below|under|beneath] {x}",
        f"name the {_THING} [below|under|beneath] {{x}}",
        "[below|under] {x} [is|there is] what",
        f"which {_THING} [is|stands|lies] [below|under|lower than] {{x}}",
    ),
    "left_yn": (
        "is {x} [left of|to the left of|on the left of|further left than] {y}",
        f"{_ASK} [if|whether] {{x}} is [left of|to the left of] {{y}}",
        "[does|is it true that] {x} [lie|stand|is] [left of|to the left of] {y}",
        "{x} is [left of|to the left of] {y}, [right|correct|yes or no]",
    ),
    "right_yn": (
        "is {x} [right of|to the right of|on the right of|further right than] {y}",
        f"{_ASK} [if|whether] {{x}} is [right of|to the right of] {{y}}",
        "[does|is it true that] {x} [lie|stand|is] [right of|to the right of] {y}",
        "{x} is [right of|to the right of] {y}, [right|correct|yes or no]",
    ),
    "above_yn": (
        "is {x} [above|over|higher than|higher up than] {y}",
        f"{_ASK} [if|whether] {{x}} is [above|over] {{y}}",
        "[does|is it true that] {x} [lie|stand|is] [above|over] {y}",
        "{x} is [above|over|higher than] {y}, [right|correct|yes or no]",
    ),
    "below_yn": (
        "is {x} [below|under|beneath|lower than|lower down than] {y}",
        f"{_ASK} [if|whether] {{x}} is [below|under] {{y}}",
        "[does|is it true that] {x} [lie|stand|is] [below|under|beneath] {y}",
        "{x} is [below|under|lower than] {y}, [right|correct|yes or no]",
    ),
    "is_it": (
        f"is {{x}} {{c}}{_IN}",
        f"{_ASK} [if|whether] {{x}} is {{c}}",
        f"[does|is it true that] {{x}} [have the {_COLOUR}|is] {{c}}",
        "is {x} [drawn in|painted in|painted|coloured|colored] {c}",
        "{x} is {c}, [right|correct|yes or no|isn't it]",
        f"is the {_COLOUR} of {{x}} {{c}}",
        f"is {{x}} a {{c}} {_THING}",
    ),
    "biggest": (
        f"[what|which {_THING}|which] is the [biggest|largest]{_IN}",
        f"[what|which] is the [biggest|largest] {_THING}{_IN}",
        f"what's the [biggest|largest] {_THING}",
        f"{_ASK} [what|which {_THING}] is the [biggest|largest]",
        f"[name|find|show me] the [biggest|largest] {_THING}",
        f"and which {_THING} is the [biggest|largest]",
        f"which {_THING} is [bigger|larger] than the [others|rest]",
        "what is [bigger|larger] than everything else",
        f"which {_THING} takes up the most [space|room]",
    ),
    "smallest": (
        f"[what|which {_THING}|which] is the [smallest|tiniest]{_IN}",
        f"[what|which] is the [smallest|tiniest] {_THING}{_IN}",
        f"what's the [smallest|tiniest] {_THING}",
        f"{_ASK} [what|which {_THING}] is the smallest",
        f"[name|find|show me] the [smallest|tiniest] {_THING}",
        f"and which {_THING} is the smallest",
        f"which {_THING} is smaller than the [others|rest]",
        "what is smaller than everything else",
        f"which {_THING} takes up the least [space|room]",
    ),
    "background": (
        f"what {_COLOUR} is the [background|ground]{_IN}",
        f"[what|which] is the {_COLOUR} of the background{_IN}",
        f"what is the background{_IN}",
        f"what is the background [like|made of|{_COLOUR}]",
        f"{_ASK} [what|which] {_COLOUR} the background [is|has]",
        f"{_ASK} the {_COLOUR} of the background",
        f"background {_COLOUR}",
        "what's [the background|behind [it|them|everything|the things]]",
        f"on [what|which] {_COLOUR} [background|ground] is it [drawn|painted]",
        "how is the background [coloured|colored|painted]",
        "what is [behind|in the background of] [it|them|everything|the [things|objects|shapes]]",
    ),
    "short": (
        f"what is [in|on] [this|the] {_PIC}",
        f"what's [in|on] [this|the] {_PIC}",
        f"what [do|can] you see{_IN}",
        f"what [does|do] [this|the] {_PIC} show",
        f"{_ASK} what is [in|on] [this|the] {_PIC}",
        f"{_ASK} what you see{_IN}",
        f"what is [shown|drawn|here|there|to be seen]{_IN}",
        f"describe [this|the] {_PIC} [briefly|shortly|in short|in one sentence|in a few words]",
        f"[give|write] [me|] a [short|brief] description [of [this|the] {_PIC}|]",
        f"what [things|objects|shapes] are [there|in [this|the] {_PIC}|here]",
        f"[list|name] [the|all|all the] [things|objects|shapes|items]{_IN}",
        "which [things|objects|shapes] [do|can] you see",
        "what is this",
        "what's this",
        f"briefly describe [this|the] {_PIC}",
        "[please|] describe it briefly",
        f"what is [this|the] {_PIC} [about|of]",
    ),
    "caption": (
        f"[give|write|make|suggest|find] [me|] a [caption|title] [for [this|the] {_PIC}|]",
        f"[caption|title] [this|the] {_PIC}",
        "[please|] caption this",
        f"what [would be|is] a good [caption|title] for [this|the] {_PIC}",
        f"[i need|can i have|can you write] a [caption|title] [for [this|the] {_PIC}|]",
        "[a caption|a title|caption|title], please",
        f"how would you [caption|title] [this|the] {_PIC}",
    ),
    "detail": (
        f"describe [this|the] {_PIC} [in detail|in full|in depth|carefully|precisely|exactly]",
        f"[give|write] [me|] a [detailed|full|long|careful|complete] description [of [this|the] {_PIC}|]",
        f"{_ASK} everything [about [this|the] {_PIC}|you [see|can see]]",
        f"[describe|explain] everything [you see|you can see|in [this|the] {_PIC}]",
        f"what is in [this|the] {_PIC} and where [is it|are they]",
        "describe [all|all the|the] [things|objects|shapes] and [their|the] [places|positions]",
        f"describe [this|the] {_PIC} with [all|every|the] [details|detail]",
        "[please|] describe it in detail",
        f"take a look at [this|the] {_PIC} and describe [what you notice|it in detail]",
        f"where is [everything|each {_THING}]",
        f"describe [this|the] {_PIC}",
        f"could you describe the contents of [this|the] {_PIC} for me",
    ),
    "greeting": (
        "[hello|hi|hey|hi there|hello there|hey there|howdy|greetings]",
        "good [morning|evening|afternoon|day]",
        "[hello|hi|hey] [bot|robot|friend|assistant|you|everyone|minigpt]",
        "[hello|hi|hey|good morning], [how are you|nice to meet you|how is it going|how do you do|what's up]",
        "[how are you|nice to meet you|what's up|how do you do|how is it going] [today|]",
        "[hello|hi|hey][!|!!|.|]",
    ),
}
"""Patterns by kind."""

NEW: dict[str, tuple[str, ...]] = {
    "colour": ("what hue is {x}", "{x}: what colour is it", "i cannot tell the colour of {x}, can you"),
    "which": ("i see something {c}; what is it", "something is {c}. what", "what would you call the {c} thing"),
    "count_all": (
        "give me the number of objects you see",
        "exactly how many shapes are we looking at",
        "count everything",
    ),
    "count": ("give me the number of {n}", "exactly how many {n} are we looking at", "and how many {n} would that be"),
    "exists": ("would you say there is {a}", "check for {a}", "is {a} anywhere in this image"),
    "where": ("whereabouts is {x}", "which part of the image holds {x}", "show me where {x} is"),
    "left": ("what lies to the left of {x}", "looking left from {x}, what is there"),
    "right": ("what lies to the right of {x}", "looking right from {x}, what is there"),
    "above": ("what is located above {x}", "looking up from {x}, what is there"),
    "below": ("what is located below {x}", "looking down from {x}, what is there"),
    "left_yn": ("would you say {x} is left of {y}",),
    "right_yn": ("would you say {x} is right of {y}",),
    "above_yn": ("would you say {x} is above {y}",),
    "below_yn": ("would you say {x} is below {y}",),
    "is_it": ("would you say {x} is {c}", "so {x} is {c}"),
    "biggest": ("what is the largest of them all", "out of these, which is biggest"),
    "smallest": ("what is the smallest of them all", "out of these, which is smallest"),
    "background": ("and the colour of the background", "describe the background", "which colour fills the background"),
    "short": ("what am i looking at", "sum up this picture", "what is depicted here"),
    "caption": ("think of a caption", "this picture needs a title"),
    "detail": ("describe what you see in as much detail as you can", "give every detail of this image"),
    "greeting": ("hiya", "hello my friend", "good to see you"),
}
"""Wordings that only evaluation asks."""

_PERSON = (
    "[the artist|the painter|the owner|the author|your boss|the person who drew this|my friend|my mother|the man|the woman"
    "|the president]"
)
_FORBIDDEN = (
    f"what is the [name|age|address|phone number|job|birthday|salary|nationality|email] of {_PERSON}",
    f"who [is|was] {_PERSON}",
    f"how old is {_PERSON}",
    f"where does {_PERSON} [live|work|come from|sleep]",
    f"what [did|does] {_PERSON} [eat|say|think|want|like|dream of|do for a living|read]",
    f"who [drew|painted|made|took|bought|sold|owns] [this|the] {_PIC}",
    f"when was [this|the] {_PIC} [made|taken|drawn|painted|sold|printed]",
    f"where was [this|the] {_PIC} [made|taken|drawn|painted|found|sold]",
    f"why [was|did] [someone|anyone|somebody] [draw|paint|make|made|take] [this|the] {_PIC}",
    f"how much [is|does] [this|the] {_PIC} [worth|cost|weigh]",
    f"what is the [price|weight|title|age|history|smell|taste|temperature] of [this|the] {_PIC}",
    "what [day|time|year|month|date|season] [is it|was it]",
    "what is the weather [like|today|tomorrow|there|in paris|in london]",
    "will it [rain|snow|be sunny|be cold] [today|tomorrow|on sunday]",
    "what is the capital of [france|spain|germany|china|japan|italy|peru|egypt|brazil|india]",
    "who [won|lost] the [game|match|election|war|race|world cup]",
    "[tell me|do you know] a [joke|secret|fairy tale|riddle|rumour]",
    "what is [two plus two|five times six|ten minus three|the square root of nine|the meaning of life|love|your name]",
    "how do i [cook rice|bake bread|fix my car|learn french|lose weight|get rich|sleep better|tie a tie]",
    "what should i [eat|wear|buy|do|read|watch|cook] [today|tonight|tomorrow|now]",
    "[can you|please] [sing|dance|call|drive|cook|fly|swim|whistle] [a song|for me|me|tonight]",
    "what is [he|she|someone|the dog|the cat|the baby] [thinking|feeling|saying|dreaming|eating]",
    "what [happened|will happen] [before|next|after this|yesterday|tomorrow|later]",
    "what [music|song|sound|noise] is [playing|this|that]",
    "what does it [smell|taste|sound|feel] like",
    "[is|was] [he|she|the artist|the painter|the owner] [happy|sad|angry|rich|famous|tired|married|alive]",
    "how [fast|heavy|expensive|old|warm|loud] is [it|this|that]",
    "which [country|city|company|museum|school|book|film] is this from",
    "what [brand|model|company] is [this|it|that]",
    "who are you [talking to|working for|thinking of]",
    "what is my [name|age|job|favourite food|phone number|password]",
    "do you [like|love|hate|miss] [me|music|pizza|football|your job|people]",
    "translate [this|it] [into|to] [french|german|spanish|chinese|latin]",
    "write [me|] [a poem|a letter|an essay|some code|a program|a python script] [about cats|for my boss|for school|]",
    "book [me|] a [flight|hotel|table|taxi] [to rome|for tonight|for two|]",
    "what is the [stock price|news|score|exchange rate|traffic|best restaurant] [today|now|near me]",
)
TRAINED["refusal"] = _FORBIDDEN
NEW["refusal"] = (
    "what is the artist's shoe size",
    "which gallery sold this painting and for how much",
    "did my brother like the concert",
    "tell me the phone number of your teacher",
    "what is the population of canada",
    "what will the weather be next week",
    "how tall is the woman who took this photo",
    "recommend a good book",
    "who is the king of england",
    "when did the owner buy it",
    "why is the painter so sad",
    "play some music for me",
)

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def word(patterns: tuple[str, ...], rng: random.Random, **parts: str) -> str:
    """One wording of a pattern, as somebody types it: with or without a capital letter and a mark at the end."""
    text = rng.choice(patterns)
    while found := _CHOICE.search(text):
        text = text[: found.start()] + rng.choice(found[1].split("|")) + text[found.end() :]
    text = re.sub(r" +", " ", text.format(**parts)).strip()
    if rng.random() < 0.75:
        text = text[0].upper() + text[1:]
    if text[-1].isalpha():
        asks = not re.match(
            r"(count|name|find|list|describe|give|write|locate|point|identify|caption|title)\b", text.lower()
        )
        text += rng.choice(("?", "?", "?", "")) if asks else rng.choice((".", ".", ""))
    return text
