// An OpenID Connect provider for tests: `oidc-provider`, with everybody who is named as an account.
//
//   node provider.mjs PORT REDIRECT_URL    prints its issuer when it listens
//
// Whoever is named in `login_hint` is logged in without being asked: `NAME` has the address NAME@example.com, verified unless
// the name begins with `unverified`. It keeps everything in memory. Relies on `oidc-provider` beside it (oidc.sh installs it).
import http from 'node:http';
import { Provider } from 'oidc-provider';

const [port, redirect] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
const client = {
  client_id: 'va & co',
  client_secret: 'a secret: with % and +',
  redirect_uris: [redirect],
  grant_types: ['authorization_code'],
  response_types: ['code'],
};
const account = (id) => ({
  accountId: id,
  claims: () => ({
    sub: id,
    email: `${id}@example.com`,
    email_verified: !id.startsWith('unverified'),
    name: `${id} of the provider`,
  }),
});
const provider = new Provider(issuer, {
  clients: [client],
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
  cookies: { keys: ['for tests only'] },
  features: { devInteractions: { enabled: false } },
  findAccount: (_, id) => account(id),
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  pkce: { required: () => true },
});
const answer = provider.callback();

async function interact(request, response) {
  const { prompt, params, session, grantId } = await provider.interactionDetails(request, response);
  if (prompt.name === 'login') {
    const result = { login: { accountId: params.login_hint ?? 'ann' } };
    return provider.interactionFinished(request, response, result, { mergeWithLastSubmission: false });
  }
  const grant = grantId
    ? await provider.Grant.find(grantId)
    : new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope('openid email profile');
  const result = { consent: { grantId: await grant.save() } };
  return provider.interactionFinished(request, response, result, { mergeWithLastSubmission: true });
}

http
  .createServer((request, response) => {
    if (!request.url.startsWith('/interaction/')) return answer(request, response);
    return interact(request, response).catch((error) => {
      response.writeHead(400).end(String(error));
    });
  })
  .listen(Number(port), '127.0.0.1', () => console.log(issuer));
