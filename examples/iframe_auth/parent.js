"use strict";

document.getElementById("embed").addEventListener("click", async () => {
  const answer = await fetch("auth/create-session", { method: "POST" });
  const { iframe_url: url, error } = await answer.json();
  if (url === undefined) return alert(error);
  const frame = document.getElementById("frame");
  frame.src = url;
  frame.hidden = false;
});
