// Exchanges the session_id of the address for a cookie, and shows what the cookie is good for.
"use strict";

const sessionId = new URLSearchParams(location.search).get("session_id");
// It is of no use to anybody in a moment; it need not stay in the history either.
history.replaceState(null, "", location.pathname);

async function enter() {
  if (sessionId === null) return "there is no session";
  const answer = await fetch("../auth/validate-session?" + new URLSearchParams({ session_id: sessionId }));
  const { valid, reason, error } = await answer.json();
  return valid ? null : "the session is " + (reason ?? error);
}

async function show() {
  const state = document.getElementById("state");
  try {
    const problem = await enter();
    // The page was loaded again, perhaps: then there is a cookie already.
    const answer = await fetch("session");
    if (!answer.ok) {
      state.textContent = "Not signed in: " + (problem ?? "the cookie was not kept") + ".";
      return;
    }
    for (const [name, value] of Object.entries(await answer.json())) {
      document.getElementById(name).textContent = value;
    }
    document.getElementById("handshake").hidden = false;
    state.textContent = "Signed in.";
  } catch {
    state.textContent = "Not signed in: no answer.";
  }
}

show();
