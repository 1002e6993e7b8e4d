// The strict OpenID provider of the end-to-end tests: npm oidc-provider with a login form of our own.
//
// Started as `node provider.mjs` with its settings as JSON in STRICT_PROVIDER (see tests/e2e/provider.py).
// A second, local port is the tests' hand on it: what was asked and issued, holding a path back,
// answering it with an error, rotating the signing key, changing a person's groups, taking their tokens back.

import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import { Provider } from 'oidc-provider';
import { createMemoryAdapter } from 'oidc-provider/lib/adapters/memory_adapter.js';

const settings = JSON.parse(process.env.STRICT_PROVIDER);
const issuer = `http://127.0.0.1:${settings.port}`;
const adapter = createMemoryAdapter(); // shared, so that a rotated provider still knows everybody
const seen = { calls: {}, tokens: [], codes: [], notices: [] };
const faults = new Map(); // path -> status
const held = new Map(); // path -> functions that let a waiting request go on
let keys = [newKey()];
let provider = build();

function newKey() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const id = `key-${Date.now()}-${Math.floor(Math.random() * 1e6)}`;
  return { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256', kid: id };
}

function build() {
  const built = new Provider(issuer, {
    adapter,
    clients: [{
      client_id: settings.client_id,
      client_secret: settings.client_secret,
      redirect_uris: settings.redirect_uris,
      grant_types: ['authorization_code', 'refresh_token', 'client_credentials'],
      ...settings.client,
    }],
    jwks: { keys },
    cookies: { keys: ['of no interest'] },
    ttl: { AccessToken: settings.access_token_seconds },
    scopes: ['openid', 'profile', 'email', 'groups', 'offline_access'],
    claims: {
      openid: ['sub'],
      profile: ['name', 'preferred_username'],
      email: ['email', 'email_verified'],
      groups: ['groups'],
    },
    pkce: { required: () => true },
    conformIdTokenClaims: settings.claims_in_userinfo_only,
    issueRefreshToken: () => true,
    rotateRefreshToken: true,
    findAccount: (ctx, id) => ({ accountId: id, claims: () => claimsOf(id) }),
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      introspection: { enabled: true },
      resourceIndicators: {
        enabled: true,
        // Access tokens for a resource are JWTs (RFC 9068), all others are opaque.
        getResourceServerInfo: (ctx, resource) => ({
          scope: 'api:read', audience: resource, accessTokenFormat: 'jwt', jwt: { sign: { alg: 'RS256' } },
        }),
      },
      revocation: { enabled: true },
      rpInitiatedLogout: { enabled: true },
      backchannelLogout: { enabled: true },
    },
    // Without its guard against addresses of the own machine, where everything is here.
    fetch: (url, { dispatcher, ...options }) => globalThis.fetch(url, options),
    interactions: { url: (ctx, interaction) => `/login/${interaction.uid}` },
  });
  built.on('grant.success', (ctx) => {
    if (ctx.oidc.params.code) seen.codes.push(ctx.oidc.params.code);
    for (const kind of ['access_token', 'refresh_token', 'id_token']) {
      if (ctx.body[kind]) seen.tokens.push(ctx.body[kind]);
    }
  });
  built.on('backchannel.success', (ctx, client, login) => {
    seen.notices.push({ login, at: Date.now() / 1000 });
  });
  built.on('backchannel.error', (ctx, error, client, login) => {
    seen.notices.push({ login, error: String(error.cause ?? error) });
  });
  return built;
}

function claimsOf(id) {
  const { groups } = settings.people[id];
  return {
    sub: id,
    name: id,
    preferred_username: id,
    email: `${id}@example.org`,
    email_verified: true,
    ...(groups ? { groups } : {}),
  };
}

function page(uid) {
  return `<!doctype html><html lang="en"><title>Strict provider</title>
<h1>Strict provider</h1><form method="post" action="/login/${uid}">
<label>Name <input name="login" autocomplete="off"></label>
<button name="answer" value="yes">Log in</button><button name="answer" value="no">Refuse</button></form></html>`;
}

async function login(req, res, uid) {
  if (req.method === 'GET') {
    res.writeHead(200, { 'content-type': 'text/html; charset=utf-8' }).end(page(uid));
    return;
  }
  const form = new URLSearchParams(await text(req));
  const accountId = form.get('login');
  if (form.get('answer') === 'no' || !(accountId in settings.people)) {
    const error = form.get('error') ?? 'access_denied';
    await provider.interactionFinished(req, res, { error, error_description: '<script>alert(1)</script>' });
    return;
  }
  const { params } = await provider.interactionDetails(req, res);
  const grant = new provider.Grant({ accountId, clientId: params.client_id });
  grant.addOIDCScope('openid profile email groups offline_access');
  await provider.interactionFinished(req, res, { login: { accountId }, consent: { grantId: await grant.save() } });
}

async function text(req) {
  let body = '';
  for await (const part of req) body += part;
  return body;
}

createServer(async (req, res) => {
  const { pathname } = new URL(req.url, issuer);
  seen.calls[pathname] = (seen.calls[pathname] ?? 0) + 1;
  if (held.has(pathname)) await new Promise((go) => { held.get(pathname).push(go); });
  if (faults.has(pathname)) {
    res.writeHead(faults.get(pathname), { 'content-type': 'application/json' }).end('{"error":"server_error"}');
    return;
  }
  try {
    if (pathname.startsWith('/login/')) await login(req, res, pathname.slice('/login/'.length));
    else await provider.callback()(req, res);
  } catch (error) {
    res.writeHead(400, { 'content-type': 'text/plain' }).end(String(error));
  }
}).listen(settings.port, '127.0.0.1');

const hands = {
  seen: () => ({ ...seen, held: Object.fromEntries([...held].map(([path, waiting]) => [path, waiting.length])) }),
  hold: ({ path }) => { held.set(path, []); },
  release: ({ path }) => {
    const waiting = held.get(path) ?? [];
    held.delete(path);
    waiting.forEach((go) => go());
  },
  fail: ({ path, status }) => { faults.set(path, status); },
  mend: ({ path }) => { faults.delete(path); },
  rotate: ({ drop }) => {
    keys = drop ? [newKey()] : [newKey(), ...keys];
    provider = build();
  },
  regroup: ({ login, groups }) => { settings.people[login].groups = groups; },
  revoke: async ({ login }) => {
    for (const token of seen.tokens) {
      const found = await provider.AccessToken.find(token) ?? await provider.RefreshToken.find(token);
      if (found?.accountId === login) await found.destroy();
    }
  },
};

createServer(async (req, res) => {
  const answer = await hands[req.url.slice(1)](JSON.parse((await text(req)) || '{}'));
  res.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(answer ?? {}));
}).listen(settings.admin_port, '127.0.0.1');
