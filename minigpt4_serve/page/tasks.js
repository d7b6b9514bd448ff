// What one click asks: the tasks of the MiniGPT-4 paper, MiniGPT-v2's task tags, and examples.

export const DEFAULT_QUESTION = "Describe this picture in detail.";

const GO_ON = { label: "Go on with the story", question: "Go on with the story." };

export const TASKS = [
  { label: "Describe it", question: DEFAULT_QUESTION },
  { label: "Tell a story", question: "Write a story about this picture.", next: GO_ON },
  { label: "Write a poem", question: "Write a poem about this picture." },
  { label: "Advertise it", question: "Write an advertisement for what is in this picture." },
  { label: "Get the recipe", question: "How do I make this dish? Write the recipe with its ingredients and steps." },
  { label: "Explain the joke", question: "Explain why this picture is funny." },
  { label: "Caption for a blog", question: "Write a caption for this picture, to be posted on my blog." },
  { label: "Improve this design", question: "How could the design in this picture be improved?" },
  {
    label: "Website from a sketch",
    question: "Write one HTML file, with its CSS and JavaScript inside, for the website drawn in this picture.",
  },
];

/** The task that follows the answer to a question, if there is one. */
export function nextTask(question) {
  if (question === GO_ON.question) return GO_ON;
  return TASKS.find((task) => task.question === question)?.next ?? null;
}

/**
 * MiniGPT-v2's task tags. `whole`: the text is a whole question; otherwise the person writes on. `needsBox`: a part of
 * the image is marked first.
 */
export const TAGS = [
  { label: "Describe with boxes", text: "[grounding] describe this image in detail", hint: "Every thing gets its box", whole: true },
  { label: "Find something", text: "[refer] ", hint: "Write what to find, such as: the dog on the left" },
  { label: "Detect all", text: "[detection] ", hint: "Write what to find everywhere, such as: person" },
  { label: "What is here?", text: "[identify] what is this ", hint: "Mark a part of the picture", needsBox: true },
  { label: "Short answer", text: "[vqa] ", hint: "Write a question that a word or two can answer" },
  { label: "Short caption", text: "[caption] briefly describe this image", hint: "One sentence", whole: true },
];

/** Images that ship with the page, with questions that the embedded model can answer. */
export const EXAMPLES = [
  { name: "A house and a tree", file: "village.png", question: "What is in this picture?" },
  { name: "A night sky", file: "night.png", question: "What is the background?" },
  { name: "Three fish", file: "pond.png", question: "How many objects are there?" },
  { name: "A heart", file: "love.png", question: DEFAULT_QUESTION },
];

export const exampleUrl = (file) => new URL(`examples/${file}`, import.meta.url);
