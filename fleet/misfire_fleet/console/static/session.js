// The header's button that signs out.

import { send } from "./requests.js";

document.getElementById("sign-out")?.addEventListener("click", async () => {
  await send("DELETE", "/api/session");
  location.assign("/sign-in");
});
